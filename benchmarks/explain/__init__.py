"""How well `explain` finds planted causes, how often it reports chance, and how long it takes."""
