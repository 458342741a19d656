"""Real text that is at hand everywhere: which package does a docstring come from?"""
