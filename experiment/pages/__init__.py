"""The page kit: what every HTML page is made of.

A page is a :class:`~tsugiki.experiment.pages.page.Page` of typed results, laid out by a Jinja2 template that stands
beside the code which computes them (``evaluation/pages/run.html.jinja``, …). Templates compute nothing and build
on ``templates/kit.html.jinja``; Python writes no HTML, so that everything from outside is escaped in one place.
"""
