"""Files of others, exactly: readers, the two-way rule tables, and what a load proved."""
