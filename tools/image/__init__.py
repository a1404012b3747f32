"""``capstore image``: disk images and archives made, looked at, checked, unpacked and compared.

Invariants: nothing here changes an image that is there; what is made is there whole or not at all.
"""
