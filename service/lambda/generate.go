package lambda

//go:generate go run ../../aws/model/gen -model ../../aws/model/lambda.json -overrides ../../aws/model/lambda.overrides.json -package lambda -operations CreateFunction,GetFunction,GetFunctionConfiguration,UpdateFunctionCode,UpdateFunctionConfiguration,DeleteFunction,ListFunctions,PublishLayerVersion,GetLayerVersion,GetLayerVersionByArn,ListLayers,ListLayerVersions,DeleteLayerVersion,Invoke,GetAccountSettings -o shapes_gen.go
