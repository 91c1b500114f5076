"""The evidence benchmark: which probes (plan), running them (runs), what is kept (published), the page (page, claims)."""
