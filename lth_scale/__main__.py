"""``python -m lth_scale``."""

from lth_scale.cli import main

raise SystemExit(main())
