"""What requests to storage come to in money, by a table of prices that users can replace by their own.

Nothing here asks the storage for anything that was not counted already, but for one listing of the workers.

Next: `prices.py` for the table, `costs.py` for what is reckoned by it.
"""
