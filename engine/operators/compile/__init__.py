"""The function compiler: small typed functions become expressions over columns, with the interpreter's results.

``translate`` reads a function (``source``), ``flat`` one of flat_map, both by way of ``values``, and give expressions
(``expressions``, ``texts``); ``column_steps`` runs them on batches and falls back to the interpreter on doubt. Nothing
here is imported before a stream is typed.
"""
