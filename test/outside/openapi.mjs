// Says whether a file is a valid OpenAPI document, by somebody else's judgement.
import { readFileSync } from "node:fs";
import { Validator } from "@seriousme/openapi-schema-validator";

const validator = new Validator();
const result = await validator.validate(JSON.parse(readFileSync(process.argv[2], "utf8")));
if (!result.valid || validator.version !== "3.1") {
  console.log(validator.version, JSON.stringify(result.errors, null, 1).slice(0, 4000));
  process.exit(1);
}
