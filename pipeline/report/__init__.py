"""What people read: tables, pages and pictures of plans, results, decisions and frontiers."""
