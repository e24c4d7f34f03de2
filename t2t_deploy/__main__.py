"""``python -m t2t_deploy``."""

from t2t_deploy.cli import main

if __name__ == "__main__":
    main()
