"""What people judge, and what they said: accounts, rounds of annotation, rankings, in a SQL database."""
