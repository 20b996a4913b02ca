"""Print the zoo's table: ``python -m tests.zoo [--nuts] [--seed N] [--record] [NAME ...]``.

With ``--nuts``, NUTS with 1000 + 1000 iterations runs instead. With ``--record`` the rows are
stored (the tests also use those of NUTS), and the table of ``docs/hard-targets.md`` is rewritten.
"""

import argparse

from tests.zoo import page
from tests.zoo.driver import HEADER, record, run, table_row
from tests.zoo.targets import TARGETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; default: all targets")
    parser.add_argument("--nuts", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", action="store_true", help="store the rows, rewrite the page")
    parser.add_argument("--sentences", action="store_true", help="print the findings of `diagnose`")
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
