"""Variant registry, reference T2T-ViT, checkpoint loading."""

from __future__ import annotations
from t2t_deploy.model._backbone import *
from t2t_deploy.model._config import *
from t2t_deploy.model._t2t import *
from t2t_deploy.model._tokens import *
