"""`python -m pants_dist` is `pants-dist`."""

from pants_dist.cli import main

raise SystemExit(main())
