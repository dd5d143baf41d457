"""A language model as a judge: the question, the endpoint, the verdicts kept, and what two orders come to."""
