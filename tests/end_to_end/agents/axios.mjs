// An agent with axios: `node axios.mjs METHOD URL [BODY]`. Prints the body, then the status.
import { createRequire } from "node:module";

const clients = createRequire(new URL("../../../.ci/node/package.json", import.meta.url));
const axios = clients("axios");

const [method, url, data] = process.argv.slice(2);
const said = await axios
  .request({ method, url, data, responseType: "text", transformResponse: (text) => text })
  .catch((error) => error.response ?? Promise.reject(error));
console.log(said.data);
console.log(said.status);
