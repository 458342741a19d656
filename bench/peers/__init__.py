"""The contenders: each module is a process that does the same work with another library."""
