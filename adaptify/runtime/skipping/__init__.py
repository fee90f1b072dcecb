"""Networks with gates that look at samples, run so that what the gates close is not computed."""
