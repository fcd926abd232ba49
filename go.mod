module pagewright/storage

go 1.26.0
