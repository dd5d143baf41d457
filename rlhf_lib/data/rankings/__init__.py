"""Human rankings and thumbs, from files to preference pairs."""
