"""Networks at work: policies, early exits that really leave the batch, and the fast static form."""
