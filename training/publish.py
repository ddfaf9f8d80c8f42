"""Entry point of `python -m lstmpool.training.publish`. The command itself is in `hub/publishing.py`."""

import sys

from lstmpool.training.hub.options import make_parser


def main() -> int:
    """Runs the command on the words of this process; returns its exit status."""
    make_parser().parse_known_args()  # --help ends here, before torch is imported
    from lstmpool.training.hub.publishing import main as publish

    return publish()


if __name__ == "__main__":
    sys.exit(main())
