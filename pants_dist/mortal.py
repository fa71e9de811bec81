"""Imported by a server that forks processes (multiprocessing's forkserver), and by nothing else: it ends with its parent.

By itself it would not where the parent is killed: it waits for the end of a pipe that every process it forked holds open.
"""

from pants_dist.cluster import die_with_parent

die_with_parent()
