"""The page in the browser (``changeanywhere studio``): see, edit, paint, judge, keep, review, export."""
