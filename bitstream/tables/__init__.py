"""Static tables of the caption coder, and the script that makes them."""
