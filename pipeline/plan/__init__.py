"""From configuration and facts to a plan, or to every problem at once."""
