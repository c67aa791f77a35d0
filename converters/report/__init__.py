"""The report of a conversion: report.json and report.html.

Nothing here measures or decides; it only writes the results of the conversion.
"""
