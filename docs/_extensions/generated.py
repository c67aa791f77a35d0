"""Sphinx directives that draw reference pages from the code: settings and metrics."""


def setup(app):
    return {}
