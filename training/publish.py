"""Entry point of `python -m lstmpool.training.publish`. The command itself is in `hub/publishing.py`."""

import sys

from lstmpool.training.hub.options import make_parser


if __name__ == "__main__":
    make_parser().parse_known_args()  # --help ends here, before torch is imported
    from lstmpool.training.hub.publishing import main

    sys.exit(main())
