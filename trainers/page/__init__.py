"""report.html: what a sweep found, as one page that needs no network."""
