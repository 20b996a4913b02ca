"""Print the zoo's table: ``python -m tests.zoo [--nuts] [--seed N] [--record] [NAME ...]``.

With ``--nuts``, NUTS with 1000 + 1000 iterations runs instead. With ``--record`` the rows are kept,
those of NUTS for the tests too, and the table of ``docs/hard-targets.md`` is written anew.
"""

import argparse

from tests.zoo import page
from tests.zoo.driver import HEADER, record, run, table_row
from tests.zoo.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all targets without")
    parser.add_argument("--nuts", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="keep the rows, write the page")
    parser.add_argument("--sentences", action="store_true", help="print what `diagnose` says")
    options = parser.parse_args()
    names = [n for n in TARGETS if not options.names or any(part in n for part in options.names)]
    sampler = "nuts" if options.nuts else "rwpo"
    print(HEADER, flush=True)
    for name in names:
        row, report = run(name, sampler, options.seed)
        print(table_row(name, row), flush=True)
        if options.sentences and report is not None:
            for finding in report.findings:
                print(f"  [{finding.about}] {finding.sentence}", flush=True)
        if options.record:
            record(sampler, name, row)
            page.write()


if __name__ == "__main__":
    main()
