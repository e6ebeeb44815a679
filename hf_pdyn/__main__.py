"""`accelerate launch -m hf_pdyn [plugin options] script.py ...`."""

import sys

from hf_pdyn.frontend.launcher import launch

if __name__ == "__main__":
    launch(sys.argv[1:])
