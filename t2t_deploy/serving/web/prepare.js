// From a decoded picture to a model's pixels, as t2t-deploy prepares pictures with Pillow.

// filter: support in pixels, and weight at a distance from the centre
const cubic = (x) =>
  x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - x)],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

// Pillow's weights have 22 bits behind the point, which decides what is just above or below a half
const ONE = 2 ** 22;

// For output pixels first .. first + count - 1 of a side resized from `from` to `to` pixels: where
// the input pixels begin, and their weights, which add up to 1. A smaller side widens the filter.
function taps(from, to, first, count, interpolation) {
  const scale = from / to;
  const found = [];
  if (interpolation === "nearest") {
    // Pillow adds up the step, which decides where a centre lies between two pixels
    let centre = 0.5 * scale;
    for (let index = 0; index < first + count; index++, centre += scale) {
      if (index >= first) found.push([Math.min(Math.floor(centre), from - 1), [1]]);
    }
    return found;
  }
  const [support, weight] = FILTERS[interpolation];
  const wide = Math.max(scale, 1);
  for (let index = first; index < first + count; index++) {
    const centre = (index + 0.5) * scale;
    const begin = Math.max(0, Math.trunc(centre - support * wide + 0.5));
    const end = Math.min(from, Math.trunc(centre + support * wide + 0.5));
    const weights = [];
    for (let at = begin; at < end; at++) weights.push(weight(Math.abs(at + 0.5 - centre) / wide));
    const sum = weights.reduce((total, one) => total + one, 0);
    found.push([begin, weights.map((one) => Math.round((one / sum) * ONE) / ONE)]);
  }
  return found;
}

// One pass along lines of pixels, each step so many values apart. Rounded half up to 8 bits, and
// clipped by the array that is written to.
function pass(source, target, lines, along, sourceLine, targetLine, sourceStep, targetStep, channels) {
  for (let line = 0; line < lines; line++) {
    along.forEach(([begin, weights], index) => {
      for (let channel = 0; channel < channels; channel++) {
        let at = line * sourceLine + begin * sourceStep + channel;
        let sum = 0;
        for (let tap = 0; tap < weights.length; tap++, at += sourceStep) {
          sum += weights[tap] * source[at];
        }
        target[line * targetLine + index * targetStep + channel] = Math.floor(sum + 0.5);
      }
    });
  }
}

// [first, last) of the input pixels of taps, and the taps counted from there.
function reach(found) {
  const first = Math.min(...found.map(([begin]) => begin));
  const last = Math.max(...found.map(([begin, weights]) => begin + weights.length));
  return [first, last - first, found.map(([begin, weights]) => [begin - first, weights])];
}

// A window [left, top, width, height] of the picture {data, width, height}, channels interleaved,
// resized to `to` = [width, height], with 8 bits between its two passes. As in Pillow 13 the first
// goes across, but down where that takes away more than twice as many pixels.
export function resizedWindow(picture, channels, to, window, interpolation) {
  const [left, top, width, height] = window;
  const across = taps(picture.width, to[0], left, width, interpolation);
  const down = taps(picture.height, to[1], top, height, interpolation);
  const row = picture.width * channels;
  const line = width * channels;
  const result = new Uint8ClampedArray(height * line);
  const shorter = picture.height - to[1];
  if (shorter > 0 && shorter > 2 * (picture.width - to[0])) {
    const [first, count, columns] = reach(across);
    const between = new Uint8ClampedArray(height * count * channels);
    const source = picture.data.subarray(first * channels);
    pass(source, between, count, down, channels, channels, row, count * channels, channels);
    pass(between, result, height, columns, count * channels, line, channels, channels, channels);
  } else {
    const [first, count, rows] = reach(down);
    const between = new Uint8ClampedArray(count * line);
    const source = picture.data.subarray(first * row);
    pass(source, between, count, across, row, line, channels, channels, channels);
    pass(between, result, width, rows, channels, channels, line, line, channels);
  }
  return result;
}

// [width, height] that a picture is resized to, before the crop.
export function resizedSize(width, height, preparation) {
  if (preparation.resize === "none") return [width, height];
  let [rows, columns] = preparation.box;
  if (preparation.resize === "squash") return [columns, rows];
  if (preparation.shorter_exact) [rows, columns] = height <= width ? [rows, 0] : [0, columns];
  if (columns * height >= rows * width) {
    return [columns, Math.max(Math.trunc((columns * height) / width), rows)];
  }
  return [Math.max(Math.trunc((rows * width) / height), columns), rows];
}

function halfToEven(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}

// RGBA pixels -> the model's channels: three colours, or one grey.
function withChannels(rgba, channels) {
  const data = new Uint8ClampedArray((rgba.length / 4) * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const red = rgba[from];
    const green = rgba[from + 1];
    const blue = rgba[from + 2];
    if (channels === 1) {
      data[to++] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    } else {
      data[to++] = red;
      data[to++] = green;
      data[to++] = blue;
    }
  }
  return data;
}

// ImageData -> Uint8Array of (height, width, channels) pixels. Throws an Error with a line for a
// person where the picture does not fill the model's input.
export function prepared(image, preparation) {
  const [rows, columns] = preparation.size;
  const [width, height] = resizedSize(image.width, image.height, preparation);
  const exact = preparation.resize === "none" && preparation.crop_fraction === null;
  if (exact ? width !== columns || height !== rows : width < columns || height < rows) {
    throw new Error(
      `The picture has ${image.width} × ${image.height} pixels; the model needs` +
        `${exact ? "" : " at least"} ${columns} × ${rows}.`,
    );
  }
  const window = [halfToEven((width - columns) / 2), halfToEven((height - rows) / 2), columns, rows];
  const { channels, interpolation } = preparation;
  const picture = {
    data: withChannels(image.data, channels), width: image.width, height: image.height,
  };
  const how = preparation.resize === "none" ? "nearest" : interpolation;
  return new Uint8Array(resizedWindow(picture, channels, [width, height], window, how).buffer);
}

// A JPEG whose EXIF says that it stands upright: browsers turn pictures by it, asked or not. Other
// files as they are.
async function unturned(blob) {
  const view = new DataView(await blob.arrayBuffer());
  const marker = (at) => (at + 12 < view.byteLength ? view.getUint16(at) : 0);
  if (marker(0) !== 0xffd8) return blob;
  for (let at = 2; marker(at) > 0xff00 && marker(at) !== 0xffda; at += 2 + view.getUint16(at + 2)) {
    if (marker(at) !== 0xffe1 || view.getUint32(at + 4) !== 0x45786966) continue; // "Exif"
    const little = view.getUint16(at + 10) === 0x4949;
    const first = at + 10 + view.getUint32(at + 14, little);
    for (let entry = 0; entry < view.getUint16(first, little); entry++) {
      const tag = first + 2 + 12 * entry;
      if (view.getUint16(tag, little) === 0x0112) view.setUint16(tag + 8, 1, little);
    }
  }
  return new Blob([view.buffer], { type: "image/jpeg" });
}

// A picture file -> ImageData with its stored colour values: colour profiles are ignored, as Pillow
// ignores them. It is turned upright by EXIF where the model's preparation says so.
export async function decoded(blob, preparation) {
  const bitmap = await createImageBitmap(preparation.exif ? blob : await unturned(blob), {
    colorSpaceConversion: "none",
    premultiplyAlpha: "none",
  });
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
