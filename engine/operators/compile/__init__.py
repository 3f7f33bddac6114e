"""The function compiler: small typed functions become expressions over columns, with the interpreter's results.

``translate`` reads a function (``source``), by way of ``values``, and gives expressions (``expressions``, ``texts``);
``column_steps`` runs them on batches and falls back to the interpreter on doubt. Nothing here is imported before a
stream is typed.
"""
