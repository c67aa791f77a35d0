"""Updates from a file instead of a network: `edgekit-agent import`.

The agent itself does the work, with a transport that answers from the file. So everything is verified, refused, resumed
and journalled as over a network; no rule of it is here.
"""
