"""Rows of finished runs -> tables, figures and one HTML page.

rows.py     reads rows.jsonl files into one table, the latest row of a key wins
summary.py  mean and spread over seeds, difference to the fixed-feature (FF) baseline
tables.py   comparison tables for Markdown and the terminal
figures.py  accuracy and difference against width (matplotlib, no display needed)
searches.py, search_figure.py  retrieval: quality against cost
html.py     one self-contained page
write.py    all of it into one folder; readme.py puts a table into a README

Nothing here is imported by `import mrl`.
"""
