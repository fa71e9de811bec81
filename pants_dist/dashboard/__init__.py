"""A read-only web page over run folders, on loopback; everything that it serves is installed with the package.

folders   what lies in run folders: summaries, curves, rows of cases (pure reading, in bounded bytes)
plots     figures of these (pure: tables in, plotly figures out)
guard     who may ask: token, cookie, Host
page      the layout, and what each control changes
export    the same figures as one file
server    serves the page, and says at which address
"""
