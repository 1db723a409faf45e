"""Looking at how tokenizers cut a text: in the terminal, and on a page with a text box that needs no server."""
