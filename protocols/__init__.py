"""What the actors say to each other: messages, plans, requests, layouts, options and errors.

Everything here is a frozen value or a pure function. Nothing imports Trio, torch or any other
package of this project: `protocols` is the bottom of the law of imports.
"""
