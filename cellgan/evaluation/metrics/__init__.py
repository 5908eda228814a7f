"""The metrics, by what they look at, each with its ceiling and floors."""
