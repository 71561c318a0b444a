"""The tables of the reports, one file each: rows of `summary`, or other results, in, a `Table` out.

Nothing is computed here but differences and ratios of two rows.
"""
