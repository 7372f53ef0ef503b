const express = require('express');
const app = express();
app.get('/', (request, response) => response.send('hello from rbuild\n'));
app.listen(3000, () => console.log('listening on 3000'));
