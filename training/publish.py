"""`python -m lstmpool.training.publish`: the command, which lives in `hub/publishing.py`."""

import sys

from lstmpool.training.hub.publishing import main


if __name__ == "__main__":
    sys.exit(main())
