"""What a search will cost: measured rates, and the forecast made from them."""
