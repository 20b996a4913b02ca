"""Print the zoo's table: ``python -m tests.zoo [--nuts] [--seed N] [part of a name ...]``.

With ``--nuts``, NUTS with 1000 + 1000 iterations runs instead, and its rows are
recorded for the tests.
"""

import argparse
import json

from tests.zoo.driver import HEADER, NUTS_ROWS, run, table_row
from tests.zoo.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all targets without")
    parser.add_argument("--nuts", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sentences", action="store_true", help="print what `diagnose` says")
    options = parser.parse_args()
    names = [n for n in TARGETS if not options.names or any(part in n for part in options.names)]
    print(HEADER, flush=True)
    rows = json.loads(NUTS_ROWS.read_text()) if options.nuts and NUTS_ROWS.exists() else {}
    for name in names:
        row, report = run(name, "nuts" if options.nuts else "rwpo", options.seed)
        print(table_row(name, row), flush=True)
        if options.sentences and report is not None:
            for finding in report.findings:
                print(f"  [{finding.about}] {finding.sentence}", flush=True)
        rows[name] = row._asdict()
        if options.nuts:
            NUTS_ROWS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
