"""What good data is. One module per kind of row; `contract.check_rows` judges rows against one of them.

The only home of Great Expectations: modules derive narrow columns from the rows, it judges them.
"""

from __future__ import annotations

import os

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # before its first import: it reports nothing to anybody
