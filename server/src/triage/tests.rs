//! Stories that machines tell, and what the judge makes of them.
