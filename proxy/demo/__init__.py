"""`pullcord demo`: the real proxy between an agent with a planted loop and a made-up upstream."""
