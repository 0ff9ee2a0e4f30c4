// An agent with undici: `node undici.mjs METHOD URL [BODY]`. Prints the body, then the status.
import { createRequire } from "node:module";

const clients = createRequire(new URL("../../../.ci/node/package.json", import.meta.url));
const { EnvHttpProxyAgent, fetch } = clients("undici");

const [method, url, body] = process.argv.slice(2);
const answer = await fetch(url, { method, body, dispatcher: new EnvHttpProxyAgent() });
console.log(await answer.text());
console.log(answer.status);
