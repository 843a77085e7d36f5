"""What people and programs see of a run: words, a status, a page, metrics, an audit log."""
