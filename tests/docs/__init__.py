"""The documents are held to their word: what is written is run, what exists is written down.

* `pages`: a Markdown page as fenced blocks, tables, links and headings.
* `story`: the shell of a newcomer who copies every block of the README, from top to bottom, on a machine of its own.
"""
