"""Whatever is private or version-dependent in another library, one module for each library."""
