"""The page of `slmx eval report`: sections are made once, and written as HTML, Markdown or LaTeX."""
